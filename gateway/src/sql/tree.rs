//! The parse tree, walked without forgetting anything.
//!
//! `pg_query` hands out some 270 generated structs. What must never happen is that one of their
//! fields is not looked at: a table reference inside a window frame's offset is as real as one in
//! `FROM`. So every struct the raw grammar can produce is a row of the table below, its children in
//! braces, its plain data in brackets, and the generated code destructures each struct without `..`:
//! a field added by a new grammar does not compile until it has its place here. What the grammar
//! cannot produce (nodes made by PostgreSQL's analyser) makes the statement *unknown*.
//!
//! A row that is a statement names the [`Verb`] it counts as.

use pg_query::NodeEnum;
use pg_query::protobuf as pb;

use super::Verb;

/// A node that only PostgreSQL's analyser makes: not understood, so the statement is not either.
#[derive(Debug)]
pub(super) struct Unexpected(pub &'static str);

/// A field that holds nodes, however it is wrapped.
trait Child {
    fn each<'a>(&'a self, visit: &mut dyn FnMut(Ref<'a>));
}

impl<T: Child> Child for Vec<T> {
    fn each<'a>(&'a self, visit: &mut dyn FnMut(Ref<'a>)) {
        self.iter().for_each(|child| child.each(visit));
    }
}

impl<T: Child> Child for Option<T> {
    fn each<'a>(&'a self, visit: &mut dyn FnMut(Ref<'a>)) {
        self.iter().for_each(|child| child.each(visit));
    }
}

impl<T: Child> Child for Box<T> {
    fn each<'a>(&'a self, visit: &mut dyn FnMut(Ref<'a>)) {
        (**self).each(visit);
    }
}

impl Child for pb::Node {
    fn each<'a>(&'a self, visit: &mut dyn FnMut(Ref<'a>)) {
        if let Some(node) = &self.node {
            visit(Ref::of(node));
        }
    }
}

/// The node inside a `pb::Node`, if there is one.
pub(super) fn inner(node: &pb::Node) -> Option<Ref<'_>> {
    node.node.as_ref().map(Ref::of)
}

macro_rules! nodes {
    (
        raw { $($variant:ident($kind:ident) $(=> $verb:ident)? {$($child:ident),*} [$($plain:ident),*];)* }
        analysed { $($late:ident($late_kind:ident)),* $(,)? }
    ) => {
        /// A reference to any node of the tree.
        #[derive(Debug, Clone, Copy)]
        #[expect(clippy::enum_variant_names, reason = "the names are the grammar's")]
        pub(super) enum Ref<'a> {
            $($variant(&'a pb::$kind),)*
            $($late(#[expect(dead_code, reason = "only its name is of use")] &'a pb::$late_kind),)*
        }

        impl<'a> Ref<'a> {
            pub(super) fn of(node: &'a NodeEnum) -> Self {
                match node {
                    $(NodeEnum::$variant(it) => Ref::$variant(it),)*
                    $(NodeEnum::$late(it) => Ref::$late(it),)*
                }
            }

            /// The node's direct children, in no particular order.
            pub(super) fn children(self, visit: &mut dyn FnMut(Ref<'a>)) -> Result<(), Unexpected> {
                let _ = &visit;
                match self {
                    $(Ref::$variant(it) => {
                        let pb::$kind { $($child,)* $($plain: _,)* } = it;
                        $($child.each(visit);)*
                    })*
                    $(Ref::$late(_) => return Err(Unexpected(stringify!($late))),)*
                }
                Ok(())
            }

            /// What the statement counts as; `None` for everything that is not a statement.
            pub(super) fn verb(self) -> Option<Verb> {
                match self {
                    $($(Ref::$variant(_) => Some(Verb::$verb),)?)*
                    _ => None,
                }
            }

            /// The grammar's name of the node.
            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Ref::$variant(_) => stringify!($variant),)*
                    $(Ref::$late(_) => stringify!($late),)*
                }
            }
        }

        $(impl Child for pb::$kind {
            fn each<'a>(&'a self, visit: &mut dyn FnMut(Ref<'a>)) {
                visit(Ref::$variant(self));
            }
        })*
        $(impl Child for pb::$late_kind {
            fn each<'a>(&'a self, visit: &mut dyn FnMut(Ref<'a>)) {
                visit(Ref::$late(self));
            }
        })*
    };
}

nodes! {
    raw {
        Alias(Alias) {colnames} [aliasname];
        RangeVar(RangeVar) {alias} [catalogname, schemaname, relname, inh, relpersistence, location];
        IntoClause(IntoClause)
            {rel, col_names, options, view_query}
            [access_method, on_commit, table_space_name, skip_data];
        GroupingFunc(GroupingFunc) {xpr, args, refs} [agglevelsup, location];
        MergeSupportFunc(MergeSupportFunc) {xpr} [msftype, msfcollid, location];
        NamedArgExpr(NamedArgExpr) {xpr, arg} [name, argnumber, location];
        BoolExpr(BoolExpr) {xpr, args} [boolop, location];
        SubLink(SubLink) {xpr, testexpr, oper_name, subselect} [sub_link_type, sub_link_id, location];
        CaseExpr(CaseExpr) {xpr, arg, args, defresult} [casetype, casecollid, location];
        CaseWhen(CaseWhen) {xpr, expr, result} [location];
        RowExpr(RowExpr) {xpr, args, colnames} [row_typeid, row_format, location];
        CoalesceExpr(CoalesceExpr) {xpr, args} [coalescetype, coalescecollid, location];
        MinMaxExpr(MinMaxExpr) {xpr, args} [minmaxtype, minmaxcollid, inputcollid, op, location];
        SqlvalueFunction(SqlValueFunction) {xpr} [op, r#type, typmod, location];
        XmlExpr(XmlExpr)
            {xpr, named_args, arg_names, args}
            [op, name, xmloption, indent, r#type, typmod, location];
        JsonFormat(JsonFormat) {} [format_type, encoding, location];
        JsonReturning(JsonReturning) {format} [typid, typmod];
        JsonValueExpr(JsonValueExpr) {raw_expr, formatted_expr, format} [];
        JsonIsPredicate(JsonIsPredicate) {expr, format} [item_type, unique_keys, location];
        JsonBehavior(JsonBehavior) {expr} [btype, coerce, location];
        NullTest(NullTest) {xpr, arg} [nulltesttype, argisrow, location];
        BooleanTest(BooleanTest) {xpr, arg} [booltesttype, location];
        SetToDefault(SetToDefault) {xpr} [type_id, type_mod, collation, location];
        CurrentOfExpr(CurrentOfExpr) {xpr} [cvarno, cursor_name, cursor_param];
        JoinExpr(JoinExpr)
            {larg, rarg, using_clause, join_using_alias, quals, alias}
            [jointype, is_natural, rtindex];
        TypeName(TypeName) {names, typmods, array_bounds} [type_oid, setof, pct_type, typemod, location];
        ColumnRef(ColumnRef) {fields} [location];
        ParamRef(ParamRef) {} [number, location];
        AExpr(AExpr) {name, lexpr, rexpr} [kind, rexpr_list_start, rexpr_list_end, location];
        TypeCast(TypeCast) {arg, type_name} [location];
        CollateClause(CollateClause) {arg, collname} [location];
        RoleSpec(RoleSpec) {} [roletype, rolename, location];
        FuncCall(FuncCall)
            {funcname, args, agg_order, agg_filter, over}
            [agg_within_group, agg_star, agg_distinct, func_variadic, funcformat, location];
        AStar(AStar) {} [];
        AIndices(AIndices) {lidx, uidx} [is_slice];
        AIndirection(AIndirection) {arg, indirection} [];
        AArrayExpr(AArrayExpr) {elements} [list_start, list_end, location];
        ResTarget(ResTarget) {indirection, val} [name, location];
        MultiAssignRef(MultiAssignRef) {source} [colno, ncolumns];
        SortBy(SortBy) {node, use_op} [sortby_dir, sortby_nulls, location];
        WindowDef(WindowDef)
            {partition_clause, order_clause, start_offset, end_offset}
            [name, refname, frame_options, location];
        RangeSubselect(RangeSubselect) {subquery, alias} [lateral];
        RangeFunction(RangeFunction) {functions, alias, coldeflist} [lateral, ordinality, is_rowsfrom];
        RangeTableFunc(RangeTableFunc) {docexpr, rowexpr, namespaces, columns, alias} [lateral, location];
        RangeTableFuncCol(RangeTableFuncCol)
            {type_name, colexpr, coldefexpr}
            [colname, for_ordinality, is_not_null, location];
        RangeTableSample(RangeTableSample) {relation, method, args, repeatable} [location];
        ColumnDef(ColumnDef)
            {type_name, raw_default, cooked_default, identity_sequence, coll_clause, constraints,
             fdwoptions}
            [colname, compression, inhcount, is_local, is_not_null, is_from_type, storage, storage_name,
             identity, generated, coll_oid, location];
        TableLikeClause(TableLikeClause) {relation} [options, relation_oid];
        IndexElem(IndexElem)
            {expr, collation, opclass, opclassopts}
            [name, indexcolname, ordering, nulls_ordering];
        DefElem(DefElem) {arg} [defnamespace, defname, defaction, location, arg_location];
        LockingClause(LockingClause) {locked_rels} [strength, wait_policy];
        XmlSerialize(XmlSerialize) {expr, type_name} [xmloption, indent, location];
        PartitionElem(PartitionElem) {expr, collation, opclass} [name, location];
        PartitionSpec(PartitionSpec) {part_params} [strategy, location];
        PartitionBoundSpec(PartitionBoundSpec)
            {listdatums, lowerdatums, upperdatums}
            [strategy, is_default, modulus, remainder, location];
        PartitionRangeDatum(PartitionRangeDatum) {value} [kind, location];
        PartitionCmd(PartitionCmd) {name, bound} [concurrent];
        GroupingSet(GroupingSet) {content} [kind, location];
        WithClause(WithClause) {ctes} [recursive, location];
        InferClause(InferClause) {index_elems, where_clause} [conname, location];
        OnConflictClause(OnConflictClause) {infer, target_list, where_clause} [action, location];
        CtesearchClause(CteSearchClause) {search_col_list} [search_breadth_first, search_seq_column, location];
        CtecycleClause(CteCycleClause)
            {cycle_col_list, cycle_mark_value, cycle_mark_default}
            [cycle_mark_column, cycle_path_column, location, cycle_mark_type, cycle_mark_typmod,
             cycle_mark_collation, cycle_mark_neop];
        CommonTableExpr(CommonTableExpr)
            {aliascolnames, ctequery, search_clause, cycle_clause, ctecolnames, ctecoltypes,
             ctecoltypmods, ctecolcollations}
            [ctename, ctematerialized, location, cterecursive, cterefcount];
        MergeWhenClause(MergeWhenClause) {condition, target_list, values} [match_kind, command_type, r#override];
        ReturningOption(ReturningOption) {} [option, value, location];
        ReturningClause(ReturningClause) {options, exprs} [];
        TriggerTransition(TriggerTransition) {} [name, is_new, is_table];
        JsonOutput(JsonOutput) {type_name, returning} [];
        JsonArgument(JsonArgument) {val} [name];
        JsonFuncExpr(JsonFuncExpr)
            {context_item, pathspec, passing, output, on_empty, on_error}
            [op, column_name, wrapper, quotes, location];
        JsonTablePathSpec(JsonTablePathSpec) {string} [name, name_location, location];
        JsonTable(JsonTable) {context_item, pathspec, passing, columns, on_error, alias} [lateral, location];
        JsonTableColumn(JsonTableColumn)
            {type_name, pathspec, format, columns, on_empty, on_error}
            [coltype, name, wrapper, quotes, location];
        JsonKeyValue(JsonKeyValue) {key, value} [];
        JsonParseExpr(JsonParseExpr) {expr, output} [unique_keys, location];
        JsonScalarExpr(JsonScalarExpr) {expr, output} [location];
        JsonSerializeExpr(JsonSerializeExpr) {expr, output} [location];
        JsonObjectConstructor(JsonObjectConstructor) {exprs, output} [absent_on_null, unique, location];
        JsonArrayConstructor(JsonArrayConstructor) {exprs, output} [absent_on_null, location];
        JsonArrayQueryConstructor(JsonArrayQueryConstructor) {query, output, format} [absent_on_null, location];
        JsonAggConstructor(JsonAggConstructor) {output, agg_filter, agg_order, over} [location];
        JsonObjectAgg(JsonObjectAgg) {constructor, arg} [absent_on_null, unique];
        JsonArrayAgg(JsonArrayAgg) {constructor, arg} [absent_on_null];
        RawStmt(RawStmt) {stmt} [stmt_location, stmt_len];
        InsertStmt(InsertStmt) => Insert
            {relation, cols, select_stmt, on_conflict_clause, returning_clause, with_clause}
            [r#override];
        DeleteStmt(DeleteStmt) => Delete {relation, using_clause, where_clause, returning_clause, with_clause} [];
        UpdateStmt(UpdateStmt) => Update
            {relation, target_list, where_clause, from_clause, returning_clause, with_clause}
            [];
        MergeStmt(MergeStmt) => Merge
            {relation, source_relation, join_condition, merge_when_clauses, returning_clause,
             with_clause}
            [];
        SelectStmt(SelectStmt) => Select
            {distinct_clause, into_clause, target_list, from_clause, where_clause, group_clause,
             having_clause, window_clause, values_lists, sort_clause, limit_offset, limit_count,
             locking_clause, with_clause, larg, rarg}
            [group_distinct, limit_option, op, all];
        ReturnStmt(ReturnStmt) {returnval} [];
        CreateSchemaStmt(CreateSchemaStmt) => Ddl {authrole, schema_elts} [schemaname, if_not_exists];
        AlterTableStmt(AlterTableStmt) => Ddl {relation, cmds} [objtype, missing_ok];
        AlterTableCmd(AlterTableCmd) {newowner, def} [subtype, name, num, behavior, missing_ok, recurse];
        AtalterConstraint(AtAlterConstraint)
            {}
            [conname, alter_enforceability, is_enforced, alter_deferrability, deferrable, initdeferred,
             alter_inheritability, noinherit];
        ReplicaIdentityStmt(ReplicaIdentityStmt) => Ddl {} [identity_type, name];
        AlterCollationStmt(AlterCollationStmt) => Ddl {collname} [];
        AlterDomainStmt(AlterDomainStmt) => Ddl {type_name, def} [subtype, name, behavior, missing_ok];
        GrantStmt(GrantStmt) => Grant
            {objects, privileges, grantees, grantor}
            [is_grant, targtype, objtype, grant_option, behavior];
        ObjectWithArgs(ObjectWithArgs) {objname, objargs, objfuncargs} [args_unspecified];
        AccessPriv(AccessPriv) {cols} [priv_name];
        GrantRoleStmt(GrantRoleStmt) => Grant {granted_roles, grantee_roles, opt, grantor} [is_grant, behavior];
        AlterDefaultPrivilegesStmt(AlterDefaultPrivilegesStmt) => Grant {options, action} [];
        CopyStmt(CopyStmt) => CopyTo
            {relation, query, attlist, options, where_clause}
            [is_from, is_program, filename];
        VariableSetStmt(VariableSetStmt) => Set {args} [kind, name, jumble_args, is_local, location];
        VariableShowStmt(VariableShowStmt) => Show {} [name];
        CreateStmt(CreateStmt) => Ddl
            {relation, table_elts, inh_relations, partbound, partspec, of_typename, constraints,
             nnconstraints, options}
            [oncommit, tablespacename, access_method, if_not_exists];
        Constraint(Constraint)
            {raw_expr, keys, including, exclusions, options, where_clause, pktable, fk_attrs, pk_attrs,
             fk_del_set_cols, old_conpfeqop}
            [contype, conname, deferrable, initdeferred, is_enforced, skip_validation, initially_valid,
             is_no_inherit, cooked_expr, generated_when, generated_kind, nulls_not_distinct,
             without_overlaps, indexname, indexspace, reset_default_tblspc, access_method,
             fk_with_period, pk_with_period, fk_matchtype, fk_upd_action, fk_del_action,
             old_pktable_oid, location];
        CreateTableSpaceStmt(CreateTableSpaceStmt) => System {owner, options} [tablespacename, location];
        DropTableSpaceStmt(DropTableSpaceStmt) => System {} [tablespacename, missing_ok];
        AlterTableSpaceOptionsStmt(AlterTableSpaceOptionsStmt) => System {options} [tablespacename, is_reset];
        AlterTableMoveAllStmt(AlterTableMoveAllStmt) => System
            {roles}
            [orig_tablespacename, objtype, new_tablespacename, nowait];
        CreateExtensionStmt(CreateExtensionStmt) => Ddl {options} [extname, if_not_exists];
        AlterExtensionStmt(AlterExtensionStmt) => Ddl {options} [extname];
        AlterExtensionContentsStmt(AlterExtensionContentsStmt) => Ddl {object} [extname, action, objtype];
        CreateFdwStmt(CreateFdwStmt) => Ddl {func_options, options} [fdwname];
        AlterFdwStmt(AlterFdwStmt) => Ddl {func_options, options} [fdwname];
        CreateForeignServerStmt(CreateForeignServerStmt) => Ddl
            {options}
            [servername, servertype, version, fdwname, if_not_exists];
        AlterForeignServerStmt(AlterForeignServerStmt) => Ddl {options} [servername, version, has_version];
        CreateForeignTableStmt(CreateForeignTableStmt) => Ddl {base_stmt, options} [servername];
        CreateUserMappingStmt(CreateUserMappingStmt) => Ddl {user, options} [servername, if_not_exists];
        AlterUserMappingStmt(AlterUserMappingStmt) => Ddl {user, options} [servername];
        DropUserMappingStmt(DropUserMappingStmt) => Ddl {user} [servername, missing_ok];
        ImportForeignSchemaStmt(ImportForeignSchemaStmt) => Ddl
            {table_list, options}
            [server_name, remote_schema, local_schema, list_type];
        CreatePolicyStmt(CreatePolicyStmt) => Ddl
            {table, roles, qual, with_check}
            [policy_name, cmd_name, permissive];
        AlterPolicyStmt(AlterPolicyStmt) => Ddl {table, roles, qual, with_check} [policy_name];
        CreateAmStmt(CreateAmStmt) => Ddl {handler_name} [amname, amtype];
        CreateTrigStmt(CreateTrigStmt) => Ddl
            {relation, funcname, args, columns, when_clause, transition_rels, constrrel}
            [replace, isconstraint, trigname, row, timing, events, deferrable, initdeferred];
        CreateEventTrigStmt(CreateEventTrigStmt) => Ddl {whenclause, funcname} [trigname, eventname];
        AlterEventTrigStmt(AlterEventTrigStmt) => Ddl {} [trigname, tgenabled];
        CreatePlangStmt(CreatePLangStmt) => Ddl {plhandler, plinline, plvalidator} [replace, plname, pltrusted];
        CreateRoleStmt(CreateRoleStmt) => Role {options} [stmt_type, role];
        AlterRoleStmt(AlterRoleStmt) => Role {role, options} [action];
        AlterRoleSetStmt(AlterRoleSetStmt) => Role {role, setstmt} [database];
        DropRoleStmt(DropRoleStmt) => Role {roles} [missing_ok];
        CreateSeqStmt(CreateSeqStmt) => Ddl {sequence, options} [owner_id, for_identity, if_not_exists];
        AlterSeqStmt(AlterSeqStmt) => Ddl {sequence, options} [for_identity, missing_ok];
        DefineStmt(DefineStmt) => Ddl {defnames, args, definition} [kind, oldstyle, if_not_exists, replace];
        CreateDomainStmt(CreateDomainStmt) => Ddl {domainname, type_name, coll_clause, constraints} [];
        CreateOpClassStmt(CreateOpClassStmt) => Ddl
            {opclassname, opfamilyname, datatype, items}
            [amname, is_default];
        CreateOpClassItem(CreateOpClassItem) {name, order_family, class_args, storedtype} [itemtype, number];
        CreateOpFamilyStmt(CreateOpFamilyStmt) => Ddl {opfamilyname} [amname];
        AlterOpFamilyStmt(AlterOpFamilyStmt) => Ddl {opfamilyname, items} [amname, is_drop];
        DropStmt(DropStmt) => Ddl {objects} [remove_type, behavior, missing_ok, concurrent];
        TruncateStmt(TruncateStmt) => Truncate {relations} [restart_seqs, behavior];
        CommentStmt(CommentStmt) => Ddl {object} [objtype, comment];
        SecLabelStmt(SecLabelStmt) => Ddl {object} [objtype, provider, label];
        DeclareCursorStmt(DeclareCursorStmt) => Declare {query} [portalname, options];
        ClosePortalStmt(ClosePortalStmt) => Close {} [portalname];
        FetchStmt(FetchStmt) => Fetch {} [direction, how_many, portalname, ismove];
        IndexStmt(IndexStmt) => Ddl
            {relation, index_params, index_including_params, options, where_clause, exclude_op_names}
            [idxname, access_method, table_space, idxcomment, index_oid, old_number, old_create_subid,
             old_first_relfilelocator_subid, unique, nulls_not_distinct, primary, isconstraint,
             iswithoutoverlaps, deferrable, initdeferred, transformed, concurrent, if_not_exists,
             reset_default_tblspc];
        CreateStatsStmt(CreateStatsStmt) => Ddl
            {defnames, stat_types, exprs, relations}
            [stxcomment, transformed, if_not_exists];
        StatsElem(StatsElem) {expr} [name];
        AlterStatsStmt(AlterStatsStmt) => Ddl {defnames, stxstattarget} [missing_ok];
        CreateFunctionStmt(CreateFunctionStmt) => Ddl
            {funcname, parameters, return_type, options, sql_body}
            [is_procedure, replace];
        FunctionParameter(FunctionParameter) {arg_type, defexpr} [name, mode, location];
        AlterFunctionStmt(AlterFunctionStmt) => Ddl {func, actions} [objtype];
        DoStmt(DoStmt) => Do {args} [];
        CallStmt(CallStmt) => Call {funccall, funcexpr, outargs} [];
        RenameStmt(RenameStmt) => Ddl
            {relation, object}
            [rename_type, relation_type, subname, newname, behavior, missing_ok];
        AlterObjectDependsStmt(AlterObjectDependsStmt) => Ddl {relation, object, extname} [object_type, remove];
        AlterObjectSchemaStmt(AlterObjectSchemaStmt) => Ddl
            {relation, object}
            [object_type, newschema, missing_ok];
        AlterOwnerStmt(AlterOwnerStmt) => Ddl {relation, object, newowner} [object_type];
        AlterOperatorStmt(AlterOperatorStmt) => Ddl {opername, options} [];
        AlterTypeStmt(AlterTypeStmt) => Ddl {type_name, options} [];
        RuleStmt(RuleStmt) => Ddl {relation, where_clause, actions} [rulename, event, instead, replace];
        NotifyStmt(NotifyStmt) => Notify {} [conditionname, payload, payload_location];
        ListenStmt(ListenStmt) => Listen {} [conditionname];
        UnlistenStmt(UnlistenStmt) => Unlisten {} [conditionname];
        TransactionStmt(TransactionStmt) => Transaction {options} [kind, savepoint_name, gid, chain, location];
        CompositeTypeStmt(CompositeTypeStmt) => Ddl {typevar, coldeflist} [];
        CreateEnumStmt(CreateEnumStmt) => Ddl {type_name, vals} [];
        CreateRangeStmt(CreateRangeStmt) => Ddl {type_name, params} [];
        AlterEnumStmt(AlterEnumStmt) => Ddl
            {type_name}
            [old_val, new_val, new_val_neighbor, new_val_is_after, skip_if_new_val_exists];
        ViewStmt(ViewStmt) => Ddl {view, aliases, query, options} [replace, with_check_option];
        LoadStmt(LoadStmt) => System {} [filename];
        CreatedbStmt(CreatedbStmt) => System {options} [dbname];
        AlterDatabaseStmt(AlterDatabaseStmt) => System {options} [dbname];
        AlterDatabaseRefreshCollStmt(AlterDatabaseRefreshCollStmt) => System {} [dbname];
        AlterDatabaseSetStmt(AlterDatabaseSetStmt) => System {setstmt} [dbname];
        DropdbStmt(DropdbStmt) => System {options} [dbname, missing_ok];
        AlterSystemStmt(AlterSystemStmt) => System {setstmt} [];
        ClusterStmt(ClusterStmt) => Maintenance {relation, params} [indexname];
        VacuumStmt(VacuumStmt) => Vacuum {options, rels} [is_vacuumcmd];
        VacuumRelation(VacuumRelation) {relation, va_cols} [oid];
        ExplainStmt(ExplainStmt) => Explain {query, options} [];
        CreateTableAsStmt(CreateTableAsStmt) => Ddl {query, into} [objtype, is_select_into, if_not_exists];
        RefreshMatViewStmt(RefreshMatViewStmt) => Maintenance {relation} [concurrent, skip_data];
        CheckPointStmt(CheckPointStmt) => Maintenance {} [];
        DiscardStmt(DiscardStmt) => Discard {} [target];
        LockStmt(LockStmt) => Lock {relations} [mode, nowait];
        ConstraintsSetStmt(ConstraintsSetStmt) => Transaction {constraints} [deferred];
        ReindexStmt(ReindexStmt) => Maintenance {relation, params} [kind, name];
        CreateConversionStmt(CreateConversionStmt) => Ddl
            {conversion_name, func_name}
            [for_encoding_name, to_encoding_name, def];
        CreateCastStmt(CreateCastStmt) => Ddl {sourcetype, targettype, func} [context, inout];
        CreateTransformStmt(CreateTransformStmt) => Ddl {type_name, fromsql, tosql} [replace, lang];
        PrepareStmt(PrepareStmt) => Prepare {argtypes, query} [name];
        ExecuteStmt(ExecuteStmt) => Execute {params} [name];
        DeallocateStmt(DeallocateStmt) => Deallocate {} [name, isall, location];
        DropOwnedStmt(DropOwnedStmt) => Ddl {roles} [behavior];
        ReassignOwnedStmt(ReassignOwnedStmt) => Ddl {roles, newrole} [];
        AlterTsdictionaryStmt(AlterTsDictionaryStmt) => Ddl {dictname, options} [];
        AlterTsconfigurationStmt(AlterTsConfigurationStmt) => Ddl
            {cfgname, tokentype, dicts}
            [kind, r#override, replace, missing_ok];
        PublicationTable(PublicationTable) {relation, where_clause, columns} [];
        PublicationObjSpec(PublicationObjSpec) {pubtable} [pubobjtype, name, location];
        CreatePublicationStmt(CreatePublicationStmt) => Ddl {options, pubobjects} [pubname, for_all_tables];
        AlterPublicationStmt(AlterPublicationStmt) => Ddl {options, pubobjects} [pubname, for_all_tables, action];
        CreateSubscriptionStmt(CreateSubscriptionStmt) => Ddl
            {publication, options}
            [subname, conninfo, conninfo_location];
        AlterSubscriptionStmt(AlterSubscriptionStmt) => Ddl
            {publication, options}
            [kind, subname, conninfo, conninfo_location];
        DropSubscriptionStmt(DropSubscriptionStmt) => Ddl {} [subname, missing_ok, behavior];
        Integer(Integer) {} [ival];
        Float(Float) {} [fval];
        Boolean(Boolean) {} [boolval];
        String(String) {} [sval];
        BitString(BitString) {} [bsval];
        List(List) {items} [];
        AConst(AConst) {} [isnull, val, location];
    }
    analysed {
        TableFunc(TableFunc), Var(Var), Param(Param), Aggref(Aggref), WindowFunc(WindowFunc),
        WindowFuncRunCondition(WindowFuncRunCondition), SubscriptingRef(SubscriptingRef),
        FuncExpr(FuncExpr), OpExpr(OpExpr), DistinctExpr(DistinctExpr), NullIfExpr(NullIfExpr),
        ScalarArrayOpExpr(ScalarArrayOpExpr), SubPlan(SubPlan),
        AlternativeSubPlan(AlternativeSubPlan), FieldSelect(FieldSelect), FieldStore(FieldStore),
        RelabelType(RelabelType), CoerceViaIo(CoerceViaIo), ArrayCoerceExpr(ArrayCoerceExpr),
        ConvertRowtypeExpr(ConvertRowtypeExpr), CollateExpr(CollateExpr),
        CaseTestExpr(CaseTestExpr), ArrayExpr(ArrayExpr), RowCompareExpr(RowCompareExpr),
        JsonConstructorExpr(JsonConstructorExpr), JsonExpr(JsonExpr), JsonTablePath(JsonTablePath),
        JsonTablePathScan(JsonTablePathScan), JsonTableSiblingJoin(JsonTableSiblingJoin),
        MergeAction(MergeAction), CoerceToDomain(CoerceToDomain),
        CoerceToDomainValue(CoerceToDomainValue), NextValueExpr(NextValueExpr),
        InferenceElem(InferenceElem), ReturningExpr(ReturningExpr), TargetEntry(TargetEntry),
        RangeTblRef(RangeTblRef), FromExpr(FromExpr), OnConflictExpr(OnConflictExpr), Query(Query),
        RangeTblEntry(RangeTblEntry), RtepermissionInfo(RtePermissionInfo),
        RangeTblFunction(RangeTblFunction), TableSampleClause(TableSampleClause),
        WithCheckOption(WithCheckOption), SortGroupClause(SortGroupClause),
        WindowClause(WindowClause), RowMarkClause(RowMarkClause),
        SetOperationStmt(SetOperationStmt), PlassignStmt(PlAssignStmt),
        InlineCodeBlock(InlineCodeBlock), CallContext(CallContext), IntList(IntList),
        OidList(OidList)
    }
}
